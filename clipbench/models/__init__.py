"""Which encoders exist and how each is loaded. Torch is imported only by the modules that load one."""
