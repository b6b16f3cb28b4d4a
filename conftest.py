"""Load the plugin in a checkout that is not installed; an installed clipbench loads the same one by its entry point."""

import pytest

NAME = "clipbench.pytest_plugin"


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Do what the plugin does before any conftest.py is read, where an entry point has not loaded it."""
    if not pluginmanager.has_plugin(NAME):
        pluginmanager.import_plugin(NAME)
        config = pluginmanager.get_plugin("pytestconfig")
        pluginmanager.get_plugin(NAME).offer_options(config, parser, config.invocation_params.args)
