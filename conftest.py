"""Load the plugin in a checkout; an installed clipbench loads the same one by its entry point."""

pytest_plugins = ["clipbench.pytest_plugin"]
