"""Where the package's own data and benchmarks are: one answer in a checkout, another in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def bundled(folder: str) -> Path:
    """Return the folder `fixtures` or `benchmarks`: inside the package in a wheel, beside it in a checkout.

    Raises: FileNotFoundError when neither is there, which means a broken installation.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        if (parent / folder).is_dir():
            return parent / folder
    raise FileNotFoundError(f"{folder}/ is neither in {_PACKAGE} nor beside it; install clipbench again")


def fixtures() -> Path:
    """Return the folder with data set manifests, published values and floors."""
    return bundled("fixtures")


def benchmarks() -> Path:
    """Return the folder with the benchmark tests."""
    return bundled("benchmarks")
