"""Good images to patch embeddings: what `fit` and `audit` share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engines import bank
from engines.bank import coreset_size
from engines.bundle import make_preprocessor
from train import TrainError, coreset
from train.audit import Finding, leave_one_out
from train.backbones import build
from train.data import Sample
from train.features import FeatureNet, embed_samples
from train.others import Nearest, OtherImages
from train.product import Console, Product, Settings, open_product

_TIMED = 24  # images that a search is timed on


@dataclass(frozen=True)
class Normals(Product):
    """A product's good images, embedded.

    Attributes:
        network: what embedded them.
        digests: the images' pixel digests.
        features: float32 (images * judged patches, D).
    """

    network: FeatureNet
    digests: tuple[str, ...]
    features: npt.NDArray[np.float32]

    @property
    def bank_features(self) -> npt.NDArray[np.float32]:
        """Embeddings of the bank's images: a view, not a copy."""
        return self.features[: self.in_bank * self.patches]


def embed_normals(product: Product, seed: int, console: Console) -> Normals:
    """Embed a product's good images; `seed` draws the weights of an untrained network.

    Raises:
        InspectionError: an image that cannot be read, weights that do not fit or give no finite embeddings, or more
            patches than this machine's memory holds.
    """
    check_memory(product)
    state = product.weights.state if product.weights is not None else None
    network = FeatureNet(build(product.backbone, state, seed), product.backbone).to(product.device)
    with console.progress("embedding") as advance:
        features, digests, sizes = embed_samples(
            network, product.preprocessor, product.samples, product.judged, product.device, advance
        )
    if _is_one_size(sizes, product.undrawn, console):
        # where training saw one size, another at the station means another camera mode: squeezed, cropped or scaled
        spec = product.spec.model_copy(update={"frame_size": next(iter(sizes))})
        product = replace(product, spec=spec, preprocessor=make_preprocessor(spec, product.mask))
    if not np.isfinite(features).all():
        raise TrainError("the network gave embeddings that are not finite; the weights do not suit these images")
    return Normals(**vars(product), network=network, digests=digests, features=features)


def _is_one_size(seen: frozenset[tuple[int, int]], others: Sequence[Sample], console: Console) -> bool:
    """True where the images seen have one size, (height, width), and so have the others; reads no more than it takes."""
    if len(seen) > 1 or not others:
        return len(seen) == 1
    with console.progress("sizes") as advance:
        for done, sample in enumerate(others, 1):
            if sample.image().shape[:2] not in seen:
                return False
            advance(done, len(others))
    return True


def audit(settings: Settings, console: Console) -> tuple[list[Finding], int]:
    """All findings among a folder's good images, and how many images there are. Raises InspectionError."""
    normals = embed_normals(open_product(settings, console, skip_unusable=True), settings.seed, console)
    total = len(normals.samples) + sum(finding.problem in ("duplicate", "unreadable") for finding in normals.findings)
    others = other_images(normals, select_coreset(normals, settings, console))
    outliers = []
    if others is not None:
        seen = search_others(normals, others, (len(others.rows),), console)
        outliers = leave_one_out(seen[-1].squared, normals.judged, normals.samples)
    return [*normals.findings, *outliers], total


def select_coreset(normals: Normals, settings: Settings, console: Console) -> npt.NDArray[np.int64]:
    """Indices int64 (m,) into the features: the rows of the bank, as many as the settings ask for."""
    return select_rows(normals, coreset_size(settings.coreset, len(normals.bank_features)), settings.seed, console)


def select_rows(normals: Normals, count: int, seed: int, console: Console) -> npt.NDArray[np.int64]:
    """Indices int64 (count,) into the features: the rows of the bank."""
    rng = np.random.default_rng([seed, 1])
    with console.progress("coreset") as advance:
        if normals.device.type == "cuda":
            return coreset.k_centre(normals.bank_features, count, rng, normals.device, advance)
        return bank.k_centre(normals.bank_features, count, rng, advance)


def other_images(normals: Normals, coreset: npt.NDArray[np.int64]) -> OtherImages | None:
    """The bank, as what judges its own images; None where all its rows come from one."""
    image = coreset // normals.patches
    if (image == image[0]).all():
        return None
    return OtherImages(normals.bank_features[coreset], image)


def search_others(normals: Normals, bank: OtherImages, sizes: Sequence[int], console: Console) -> list[Nearest]:
    """What every patch finds among the rows of other images, in banks of several sizes; held-out images are judged too."""
    image = np.repeat(np.arange(len(normals.samples)), normals.patches)
    with console.progress("leave one out") as advance:
        return bank.search(normals.features, image, sizes, advance)


def whole_maps(normals: Normals) -> list[npt.NDArray[np.float32]]:
    """Embeddings of some images over the whole grid, float32 (rows * columns, d) each; held-out ones where there are any."""
    first = normals.in_bank if normals.held_out else 0
    judged = normals.judged.ravel()
    images = []
    for number in range(first, min(first + _TIMED, len(normals.samples))):
        whole = np.zeros((len(judged), normals.network.dim), np.float32)
        whole[judged] = normals.features[number * normals.patches : (number + 1) * normals.patches]
        images.append(whole)
    return images


def check_memory(product: Product) -> None:
    """Refuse more patches than this machine can hold. Raises TrainError."""
    rows, dim = len(product.samples) * product.patches, product.backbone.dim
    needed = rows * (dim + 128 + 32) * 4  # embeddings, their projection, and the distances of one coreset step
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * installed:
        raise TrainError(
            f"embeddings need {needed / 2**30:.1f} GiB, this machine has {installed / 2**30:.1f} GiB;"
            " use fewer images (--few-shot), a smaller --size, or a larger machine"
        )
