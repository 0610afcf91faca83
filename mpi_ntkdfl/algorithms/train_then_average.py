"""The round of most baselines: clients train on their own data, then average with their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, model_validator

from mpi_ntkdfl.algorithms.aids import RoundMomentum, remembered
from mpi_ntkdfl.algorithms.base import Leg, Needs, RoundResult
from mpi_ntkdfl.algorithms.training import AveragingSettings, TrainingMethod
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.codecs import (
    CODECS,
    Codec,
    CodecChoice,
    Coding,
    Quantize,
    QuantizeSettings,
    message_format,
)
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network


class GossipSettings(AveragingSettings):
    """Settings of methods that train and then average with the neighbours."""

    optional: ClassVar[tuple[str, ...]] = (*AveragingSettings.optional, "codec", "round_momentum")

    codec: CodecChoice | None = None
    """How weights are written into messages, such as `{weights: {name: quantize, levels: 16}}`.
    Null sends weights as they are. With a codec, clients send the change of their weights in the round,
    and add the average of the decoded changes.
    """

    round_momentum: float = Field(default=0.0, ge=0, lt=1)
    """Local training starts at x + round_momentum (x - x'), where x are the client's weights at the
    beginning of the round and x' those at the beginning of the round before. `momentum` of ntk-dfl is
    the same.
    """

    def weights_codec(self, params: int, dtype: torch.dtype) -> Codec[Any] | None:
        """The codec of weights `[params]` of type `dtype`, None to send them as they are."""
        chosen = None if self.codec is None else self.codec.weights
        return None if chosen is None else CODECS[chosen.name](chosen, params, dtype)


class QuantizableSettings(GossipSettings):
    """`GossipSettings` with `quantize`, the short form of a codec."""

    quantize: int | None = Field(default=None, ge=2, le=256)
    """`quantize: N` is short for `codec: {weights: {name: quantize, levels: N}}`."""

    @model_validator(mode="after")
    def _one_codec(self) -> QuantizableSettings:
        if self.quantize is not None and self.codec is not None:
            raise ValueError(
                f"quantize is short for a codec: give quantize or codec, got both (quantize: "
                f"{self.quantize})"
            )
        return self

    def weights_codec(self, params: int, dtype: torch.dtype) -> Codec[Any] | None:
        """The codec of weights `[params]` of type `dtype`, None to send them as they are."""
        if self.quantize is not None:
            return Quantize(QuantizeSettings(levels=self.quantize), params, dtype)
        return super().weights_codec(params, dtype)


SettingsT = TypeVar("SettingsT", bound=GossipSettings)


class TrainThenAverage(TrainingMethod[SettingsT]):
    """Local training, then one averaging step over the closed neighbourhood.

    With a codec, clients send the change of their weights in the round, and add the average of the
    decoded changes, as in Quantized DFedAvgM (Sun, Li, Wang, "Decentralized federated averaging", TPAMI
    2023): `x_i + sum_j w_ij Q(z_j - x_j)`, where x_i are the weights before and z_j those after local
    training. Differences between clients from earlier rounds are then not averaged again, so the weights
    of clients drift apart. Without a codec they do not.
    """

    def __init__(self, settings: SettingsT, federation: Federation) -> None:
        """Prepares local training and the codec."""
        super().__init__(settings, federation)
        codec = settings.weights_codec(federation.network.layout.size, federation.dtype)
        self.coding = None if codec is None else Coding(codec, federation)
        self.momentum = RoundMomentum(settings.round_momentum, self.no_vectors(), "round starts")

    @classmethod
    def needs(cls, settings: SettingsT, network: Network, dtype: torch.dtype) -> Needs:
        """Weights, or the messages of the codec, go to the neighbours."""
        kept = cls.training_bytes(settings, network, dtype)
        kept = remembered(settings.round_momentum, network, dtype, kept)
        codec = settings.weights_codec(network.layout.size, dtype)
        legs = (Leg(("weights",), ("train",)),)
        if codec is None:
            return Needs(("weights",), kept=kept, legs=legs)
        arrays = codec.state().values()
        coded = sum(array.numel() * array.element_size() for array in arrays)

        def kept_with_codec(samples: int) -> int:
            return coded + (kept(samples) if kept is not None else 0)

        return Needs(messages=(message_format(codec, "weights"),), kept=kept_with_codec, legs=legs)

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, then averages."""
        start, kind = self.momentum.point(weights), self.settings.averaging
        trained = self.train(start, number)
        if self.coding is None:
            return RoundResult(exchange.average(trained, kind))
        changes = exchange.average(trained - weights, kind, self.coding, number)
        return RoundResult(weights + changes)

    def state(self) -> dict[str, torch.Tensor]:
        """The arrays of momentum and codec."""
        coded = {} if self.coding is None else self.coding.state()
        return {**coded, **self.momentum.state()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Gives momentum and codec their arrays back."""
        self.momentum.restore(state)
        if self.coding is not None:
            self.coding.restore(state)
