"""clipbench: is this CLIP model still as good, and as fast? Benchmarks and regression tests with evidence."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipbench.models.wrap import wrap
    from clipbench.session import evaluate
    from clipbench.types import Result, Run, Verdict

__all__ = ["Result", "Run", "Verdict", "evaluate", "wrap"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import clipbench` costs nothing."""
    if name == "evaluate":
        from clipbench.session import evaluate

        return evaluate
    if name == "wrap":
        from clipbench.models.wrap import wrap

        return wrap
    if name in ("Result", "Run", "Verdict"):
        import clipbench.types

        return getattr(clipbench.types, name)
    raise AttributeError(f"module 'clipbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
