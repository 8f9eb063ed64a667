"""Several datasets in one stream, by weight: an order of the same kind as that of one, and as pure.

The endless stream is cut into blocks of 4,096 global positions. In every block dataset d has exactly quota[d] of them,
its weight in 4096ths; which ones is a permutation by P(seed, "mix", block). The n-th position that d has anywhere is
position n of d's own endless order, with its own epochs: so each dataset is shown as it would be alone, only slower.

Samples, lanes and shards of d are numbered after those of the datasets before it, so that a place is one record, a
draw keyed by the sample is its own, and a mixture of one dataset is the plain order.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from shards.manifest import Manifest, read_manifest
from shards.stream.order import I64, Order, Place, Sequence, alike, permutation

BLOCK = 4096  # global positions in which the quotas are kept exactly
_MIX = zlib.crc32(b"mix")


@dataclass(frozen=True)
class Mixture:
    """Dataset versions and their weights, relative to each other. Raises ValueError for what cannot be mixed."""

    manifests: tuple[Manifest, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.manifests) == len(self.weights), "every dataset has a weight"
        if not 0 < len(self.manifests) <= BLOCK:
            raise ValueError(f"a mixture of {len(self.manifests)} datasets: give 1 to {BLOCK}")
        for manifest, weight in zip(self.manifests, self.weights):
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"{manifest.address}: its weight is {weight:g}: give a number above 0, or leave it out"
                )
            if manifest.samples == 0:
                raise ValueError(f"{manifest.address}: selects 0 samples: leave it out of the mixture")

    @cached_property
    def quotas(self) -> tuple[int, ...]:
        """Each dataset's number of positions in a block."""
        return quotas(self.weights)

    @cached_property
    def counts(self) -> I64:
        """Selected samples a flat shard, int64 [shards]."""
        return np.concatenate([manifest.counts for manifest in self.manifests])

    @property
    def samples(self) -> int:
        """Different samples in it; how often each is shown follows from the weights."""
        return int(self.counts.sum())

    @property
    def shares(self) -> str:
        """Each dataset's actual share of the stream, as text for people."""
        parts = [f"{quota:,}/{BLOCK:,} {m.address}" for m, quota in zip(self.manifests, self.quotas)]
        return ", ".join(parts)

    @cached_property
    def digest(self) -> str:
        """sha256 over the datasets' digests and quotas: equal for equal streams, wherever the datasets are."""
        content = [[manifest.digest, quota] for manifest, quota in zip(self.manifests, self.quotas)]
        return hashlib.sha256(json.dumps({"block": BLOCK, "mixture": content}).encode()).hexdigest()


def quotas(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Weights as 4096ths by the largest remainder, the first of equal ones; none of them 0. They sum to 4,096."""
    total = math.fsum(weights)
    exact = [BLOCK * weight / total for weight in weights]
    given = [max(1, math.floor(share)) for share in exact]
    while sum(given) > BLOCK:  # the smallest were rounded up to 1: take it from those most above their share
        given[max(range(len(given)), key=lambda d: (given[d] > 1, given[d] - exact[d]))] -= 1
    while sum(given) < BLOCK:
        given[max(range(len(given)), key=lambda d: exact[d] - given[d])] += 1
    return tuple(given)


def read_mixture(data: str, parts: Collection[str]) -> Manifest | Mixture:
    """The dataset, alone or mixed with others: each part is `DATASET=SHARE`, its share of the samples that are seen;
    `data` has the rest. Raises ValueError naming a wrong part."""
    first = read_manifest(data)
    if not parts:
        return first
    others = [split_part(part) for part in parts]
    rest = 1 - math.fsum(share for _, share in others)
    if rest <= 0:
        raise ValueError(
            f"mix: the shares of {', '.join(parts)} sum to {1 - rest:g}: {data} gets the rest: sum to less than 1"
        )
    return Mixture((first, *(read_manifest(url) for url, _ in others)), (rest, *(share for _, share in others)))


def split_part(part: str) -> tuple[str, float]:
    """`DATASET=SHARE` -> (dataset, share)."""
    url, _, text = part.rpartition("=")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not (url and 0 < share < 1):
        raise ValueError(f"mix: {part!r} is not DATASET=SHARE with a share between 0 and 1, such as s3://b/in21k=0.3")
    return url, share


def shown_of_each(quotas: tuple[int, ...], seed: int, samples_seen: int) -> list[int]:
    """How many of the first samples of a mixture each dataset has, for an order with this seed."""
    block, rest = divmod(samples_seen, BLOCK)
    owner = np.repeat(np.arange(len(quotas)), quotas)[permutation(BLOCK, seed, _MIX, block)][:rest]
    return (block * np.asarray(quotas) + np.bincount(owner, minlength=len(quotas))).tolist()


class MixedSequence:
    """The order over a mixture, with the interface of `order.Sequence`. Holds only caches of pure values."""

    def __init__(self, mixture: Mixture, order: Order):
        self.order = order
        self.samples = mixture.samples
        self.sequences = [Sequence(manifest.counts, order) for manifest in mixture.manifests]
        self._quota = np.array(mixture.quotas, np.int64)
        self._owner = np.repeat(np.arange(len(self._quota)), self._quota)
        own = np.array([sequence.samples for sequence in self.sequences], np.int64)
        self.first = np.cumsum(own) - own  # sample number of each dataset's first sample
        self._block = lru_cache(maxsize=4)(self._block_owners)

    def _block_owners(self, block: int) -> I64:
        """int64 [4096]: the dataset of each position of a block."""
        return self._owner[permutation(BLOCK, self.order.seed, _MIX, block)]

    def _owners(self, start: int, stop: int) -> I64:
        """int64 [stop - start]: the dataset of each of these global positions."""
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        found = np.concatenate([self._block(block) for block in blocks]) if blocks else self._owner[:0]
        return found[start - start // BLOCK * BLOCK :][: stop - start]

    def before(self, position: int) -> I64:
        """int64 [datasets]: how many of the positions below this one each dataset has."""
        block, rest = divmod(position, BLOCK)
        if not rest:
            return block * self._quota
        return block * self._quota + np.bincount(self._block(block)[:rest], minlength=len(self._quota))

    def global_positions(self, dataset: int, own_K: I64) -> I64:
        """Where the mixture shows a dataset's own positions: the inverse of `before`, int64 [K]."""
        block_K, number_K = np.divmod(own_K, self._quota[dataset])
        found_K = block_K * BLOCK
        order = np.argsort(block_K, kind="stable")
        for here in alike(block_K[order]):
            k = order[here]
            found_K[k] += np.flatnonzero(self._block(int(block_K[k[0]])) == dataset)[number_K[k]]
        return found_K

    def at(self, start: int, stop: int) -> Place:
        """The samples at global positions start .. stop-1 of the endless stream."""
        where = self.positions(start, stop)
        return Place(*where, self.samples_at(*where))

    def positions(self, start: int, stop: int) -> tuple[I64, I64, I64]:
        """(epoch, lane, item) of global positions start .. stop-1; each dataset counts its own epochs."""
        owner, before = self._owners(start, stop), self.before(start).tolist()
        epoch, lane, item = (np.empty(len(owner), np.int64) for _ in range(3))
        for d in np.unique(owner).tolist():
            here = owner == d
            own = self.sequences[d].positions(before[d], before[d] + int(here.sum()))
            epoch[here], lane[here], item[here] = own[0], own[1] + d * self.order.lanes, own[2]
        return epoch, lane, item

    def samples_at(self, epoch: I64, lane: I64, item: I64) -> I64:
        """The sample numbers there; all arrays [n]."""
        d_n, out = lane // self.order.lanes, np.empty(len(item), np.int64)
        for d in np.unique(d_n).tolist():
            here = d_n == d
            own = self.sequences[d].samples_at(epoch[here], lane[here] % self.order.lanes, item[here])
            out[here] = own + self.first[d]
        return out

    def substitutes(self, epoch: int, lane: int, item: int) -> Iterator[Place]:
        """Substitutes for a bad sample: the other items of the same lane window of the same dataset."""
        d, own = divmod(lane, self.order.lanes)
        for place in self.sequences[d].substitutes(epoch, own, item):
            yield Place(place.epoch, place.lane + d * self.order.lanes, place.item, place.sample + self.first[d])
