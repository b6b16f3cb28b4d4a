"""Where items come from: every module here turns files into a `Dataset`."""
