"""Combinations of settings that infer.py refuses about ``export.combine`` and ``export.quant``. No torch."""

from collections.abc import Callable

from hydraft.config.choices import ExportKind, InferMode, Layout
from hydraft.config.infer import ExportConfig, InferConfig


def _export(broken: Callable[[InferConfig], bool]) -> Callable[[InferConfig], bool]:
    return lambda o: o.mode is InferMode.export and broken(o)


def _combined(broken: Callable[[InferConfig], bool]) -> Callable[[InferConfig], bool]:
    return _export(lambda o: o.export.combine is not None and broken(o))


def _quantised(broken: Callable[[InferConfig], bool]) -> Callable[[InferConfig], bool]:
    return _export(lambda o: o.export.quant is not None and broken(o))


EXPORT: list[tuple[Callable[[InferConfig], bool], str]] = [
    (
        lambda o: o.mode is not InferMode.export and o.export != ExportConfig(),
        "export.… is for mode=export, and this is mode={o.mode.value}: leave it out",
    ),
    (
        _export(lambda o: o.export.combine is None and (bool(o.export.weights) or o.export.density is not None)),
        "export.weights and export.density are for several adapters: give export.combine=cat too",
    ),
    (
        _combined(lambda o: o.adapter is not None),
        "adapter={o.adapter} is one, and export.combine={o.export.combine.value} takes all adapters of run: leave one of them out",
    ),
    (
        _combined(lambda o: o.export.density is not None and not (o.export.combine and o.export.combine.prunes)),
        "export.density={o.export.density}: export.combine={o.export.combine.value} keeps every number: leave it out, or use ties or dare",
    ),
    (
        _quantised(lambda o: o.export.kind is not ExportKind.merged),
        "export.quant={o.export.quant.value} is for whole models, and this is export.kind={o.export.kind.value}: use export.kind=merged",
    ),
    (
        _quantised(lambda o: o.export.layout is not Layout.native),
        "export.quant={o.export.quant.value}: is stored in the layout of transformers: leave export.layout out",
    ),
    (
        _export(
            lambda o: (
                o.export.calibration != ExportConfig.calibration and not (o.export.quant and o.export.quant.calibrated)
            )
        ),
        "export.calibration={o.export.calibration} is for export.quant=gptq and export.quant=awq: give one of them too",
    ),
]
