"""The round of most baselines: clients train on their own data, then average with their neighbours."""

from __future__ import annotations

from typing import TypeVar

import torch
from pydantic import Field, model_validator

from mpi_ntkdfl.algorithms.aids import CarriesMomentum, RoundMomentum, remembered
from mpi_ntkdfl.algorithms.base import Leg, Needs, RoundResult
from mpi_ntkdfl.algorithms.training import AveragingSettings, TrainingMethod
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.codecs import CodecChoice, QuantizeSettings
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.model.network import Network


class GossipSettings(AveragingSettings):
    """Settings of methods that train and then average with the neighbours."""

    round_momentum: float = Field(default=0.0, ge=0, lt=1)
    """Local training starts at x + round_momentum (x - x'), where x are the client's weights at the
    beginning of the round and x' those at the beginning of the round before. `momentum` of ntk-dfl is
    the same.
    """


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

    @property
    def codecs(self) -> CodecChoice | None:
        """The codecs that the settings choose; None for none."""
        if self.quantize is None:
            return self.codec
        return CodecChoice(weights=QuantizeSettings(levels=self.quantize))


SettingsT = TypeVar("SettingsT", bound=GossipSettings)


class TrainThenAverage(CarriesMomentum, TrainingMethod[SettingsT]):
    """Local training, then one averaging step over the closed neighbourhood.

    With a codec, clients send the change of their weights in the round, and add the average of the
    decoded changes, as in Quantized DFedAvgM (Sun, Li, Wang, "Decentralized federated averaging", TPAMI
    2023): `x_i + sum_j w_ij Q(z_j - x_j)`, where x_i are the weights before and z_j those after local
    training. Differences between clients from earlier rounds are then not averaged again, so the weights
    of clients drift apart. Without a codec they do not.
    """

    def __init__(self, settings: SettingsT, federation: Federation) -> None:
        """Prepares local training and momentum."""
        super().__init__(settings, federation)
        self.momentum = RoundMomentum(settings.round_momentum, self.no_vectors(), "round starts")

    @classmethod
    def needs(cls, settings: SettingsT, network: Network, dtype: torch.dtype) -> Needs:
        """Weights go to the neighbours."""
        kept = cls.training_bytes(settings, network, dtype)
        kept = remembered(settings.round_momentum, network, dtype, kept)
        return Needs(("weights",), kept=kept, legs=(Leg(("weights",), ("train",)),))

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """Trains, then averages."""
        trained = self.train(self.momentum.point(weights), number)
        return RoundResult(exchange.average(trained, self.settings.averaging, weights))
