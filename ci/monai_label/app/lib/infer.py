"""Inference: MONAI Label's task for bundles, with the maps of the uncertainty, and safe for several threads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monailabel.interfaces.utils.transform import run_transforms
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.class_utils import unload_module

from .bundle import IMPORTING, Bundle
from .scores import epistemic_entropy, let_drop, mean_of

SEGMENTATION = "segmentation"
MAPS = ("uncertainty", "disagreement")  # items that a bundle's postprocessing may add, each in the image's own space
BACKGROUND_STROKE = "background stroke"
#: what splits a disagreement off the answers: of two networks, or of several samples
SPLITTERS = ("SplitDisagreementd", "sample_postprocessing")


class BundleInfer(BundleInferTask):
    """Segment with a bundle.

    A request may name a ``map`` (``uncertainty``, ``disagreement``): the answer is then that map, float32 in [0, 1], in
    the place of the segmentation. Every answer's JSON has the maps' means and what it came from.

    Args:
        bundle: exported, with weights.
        conf: of the app.

    Raises:
        ValueError: when the bundle has no weights.
    """

    def __init__(self, bundle: Bundle, conf: dict[str, str]) -> None:
        if not bundle.weights.is_file():
            fix = f"put them there, or make the app anew by ci/label_app.py --bundles {bundle.name} --untrained"
            raise ValueError(f"{bundle.weights}: no weights to serve. Fix: {fix}.")
        self.bundle = bundle
        with IMPORTING:
            super().__init__(str(bundle.folder), conf)
        if "scribble" in bundle.kinds:  # by which one draws what is background, among strokes
            named: dict[str, int] = {name.lower(): value for value, name in bundle.classes.items() if value}
            self.labels = named | {BACKGROUND_STROKE: len(named) + 1}
        text = (bundle.folder / "configs" / "inference.yaml").read_text()
        self.disagrees = any(name in text for name in SPLITTERS)
        # build_network hands a dropout to any network by whatever name it knows it
        target = str(self.bundle_config["network_def"]["_target_"])
        self.drops = target.endswith("build_network") or "dropout" in signature(type(self.network)).parameters
        self._config["map"] = [SEGMENTATION, *MAPS[: 1 + self.disagrees]]

    def pre_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        """Of the bundle, made by one thread at a time."""
        with IMPORTING:
            return list(super().pre_transforms(data))

    def inferer(self, data: Any = None) -> Any:
        """Of the bundle, made by one thread at a time."""
        with IMPORTING:
            return super().inferer(data)

    def post_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        """Of the bundle, made by one thread at a time; nothing is written beside the answer."""
        with IMPORTING:
            return list(super().post_transforms(data))

    def build(self, name: str, changes: Mapping[str, Any]) -> Any:
        """Make an object of the bundle's inference.yaml anew.

        Args:
            name: key of the config.
            changes: values of other keys.
        """
        with IMPORTING:
            folder = str(self.bundle.folder)
            sys.path.insert(0, folder)
            unload_module("scripts")
            try:
                parser = ConfigParser(ConfigParser.load_config_file(self.bundle_config_path))
                for key, value in {"bundle_root": folder, **changes}.items():
                    parser[key] = value
                return parser.get_parsed_content(name)
            finally:
                sys.path.remove(folder)

    def _chosen_weights(self, data: Any) -> Path:
        name = (data or {}).get("model_filename")
        name = name[0] if isinstance(name, list) and name else name
        chosen = self.bundle.weights.parent / name if name else self.bundle.weights
        return chosen if chosen.is_file() else self.bundle.weights

    def _get_network(self, device: Any, data: Any) -> torch.nn.Module:
        """The network as the bundle wires it, its disagreement with it; new weights are served as they come."""
        path = self._chosen_weights(data)
        with IMPORTING:
            stamp = path.stat().st_mtime_ns
            known = self._networks.get((device, path))
            if known is None or known[1] != stamp:
                network = self.build("network", {"weights": str(path)}).to(torch.device(device)).eval()
                known = self._networks[device, path] = (network, stamp)
            return known[0]

    def writer(self, data: Any, extension: Any = None, dtype: Any = None) -> tuple[Any, dict[str, Any]]:
        """Write the segmentation or the map that the request names."""
        wanted = data.get("map") or SEGMENTATION
        wanted = wanted[0] if isinstance(wanted, list) else wanted
        means = {name: mean_of(data[name]) for name in MAPS if name in data}
        if wanted != SEGMENTATION:
            if wanted not in means:
                raise ValueError(f"map: {wanted!r} is none of {', '.join([SEGMENTATION, *means])}.")
            data, dtype = {**data, self.output_label_key: data[wanted][0]}, "float32"
        file, result = super().writer(data, extension, dtype)
        result |= {"map": wanted, "means": means, "provenance": self.bundle.provenance(self._chosen_weights(data))}
        return file, result

    def dropping(self, dropout: float, device: str) -> torch.nn.Module:
        """The trained network with dropout at work and all else as in inference.

        Args:
            dropout: probability to drop a value, in (0, 1).
            device: where it will run.

        Raises:
            ValueError: when nothing in it drops.
        """
        network = self.build("network_def", {"network_def#dropout": dropout})
        state = torch.load(self.bundle.weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state.get("model", state))
        if not let_drop(network):
            raise ValueError(f"{self.bundle.name}: nothing in its network drops values at dropout {dropout}.")
        return network.to(torch.device(device))

    def epistemic_entropy(self, image: str, network: torch.nn.Module, device: str, passes: int) -> float:
        """Of a study, by a network with dropout at work, see :func:`~.scores.epistemic_entropy`.

        Args:
            image: path.
            network: of :meth:`dropping`.
            device: where it is.
            passes: of the image through the network.

        Returns:
            in [0, 1].
        """
        data: dict[str, Any] = {"image": image, "image_path": image, "device": device}
        data = run_transforms(data, self.pre_transforms(data), log_prefix="PRE")
        inferer, batch = self.inferer(data), torch.as_tensor(data["image"])[None].to(device)
        return epistemic_entropy(lambda: inferer(batch, network)[0], len(self.bundle.classes), passes, seed=0)

    def mean_disagreement(self, image: str) -> float:
        """Mean over the image of the disagreement between the bundle's networks or samples, in [0, 1]."""
        _, data = self({"image": image, "skip_writer": True, "logging": "ERROR"})
        return mean_of(data["disagreement"])
