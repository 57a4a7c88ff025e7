"""An app for MONAI Label that serves the bundles in its folder ``model`` and teaches each by what it can learn from.

Start it by ``monailabel start_server --app DIR --studies /my/images``; ``--conf models alc,multicure`` serves some.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import monailabel
from lib.bundle import Bundle, bundles_in
from lib.infer import BundleInfer
from lib.scoring import Audit, Disagreement, Entropy, Score
from lib.strategies import Most, MostSuspect
from lib.train import BundleTrain
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random


class ImperfectLabelsApp(MONAILabelApp):
    """The app.

    Args:
        app_dir: folder of this file.
        studies: folder of the images, or an address.
        conf: of the command line; ``models``: names of bundles by commas, default: all.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.bundles = _chosen(bundles_in(Path(app_dir) / "model"), conf.get("models", ""))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Segmentation from imperfect labels",
            description="Bundles that learn from noisy, missing, sparse, several and unreliable labels",
            version=monailabel.__version__,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """A task a bundle."""
        return {name: BundleInfer(bundle, self.conf) for name, bundle in self.bundles.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        """A task a bundle."""
        return {name: BundleTrain(bundle, self.conf) for name, bundle in self.bundles.items()}

    @cached_property
    def methods(self) -> dict[str, Score | Audit]:
        """Of each bundle the scores that its network and configs allow."""
        methods: dict[str, Score | Audit] = {}
        for name, bundle in self.bundles.items():
            infer = self._infers[name]
            if infer.drops:
                methods[f"{name}_entropy"] = Entropy(bundle, infer)
            if infer.disagrees:
                methods[f"{name}_disagreement"] = Disagreement(bundle, infer)
            if bundle.audits:
                methods[f"{name}_audit"] = Audit(bundle)
        return methods

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Those of the bundles."""
        return dict(self.methods)

    def init_strategies(self) -> dict[str, Strategy]:
        """Those of MONAI Label that need no score, and one a scoring method."""
        strategies: dict[str, Strategy] = {"random": Random(), "first": First()}
        for name, method in self.methods.items():
            strategy = MostSuspect if isinstance(method, Audit) else Most
            strategies[name] = strategy(name, method.bundle.kinds)
        return strategies

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> Any:
        """Score in the background; what nobody asked for writes scores, and no proposal of a label."""
        if method is None:
            params = {name: {"proposals": False} for name in self._scoring_methods} | (params or {})
        return super().async_scoring(method, params)


def _chosen(bundles: dict[str, Bundle], names: str) -> dict[str, Bundle]:
    chosen = [name.strip() for name in names.split(",") if name.strip()] or list(bundles)
    if unknown := [name for name in chosen if name not in bundles]:
        raise ValueError(f"no bundle {', '.join(unknown)} in this app. Fix: use {', '.join(bundles) or 'another app'}.")
    return {name: bundles[name] for name in chosen}
