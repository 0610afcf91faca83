"""Codecs: how vectors and Jacobians are written into messages, so that clients send fewer bytes."""

from mpi_ntkdfl.federation.codecs.base import CODECS, Codec, CodecSettings, RowCodec, register_codec
from mpi_ntkdfl.federation.codecs.choice import CodecChoice
from mpi_ntkdfl.federation.codecs.halves import Bfloat16, Float16
from mpi_ntkdfl.federation.codecs.quantize import Quantize, QuantizeSettings
from mpi_ntkdfl.federation.codecs.sparse import RandomK, TopK
from mpi_ntkdfl.federation.codecs.subsample import Subsample

__all__ = [
    "CODECS",
    "Bfloat16",
    "Codec",
    "CodecChoice",
    "CodecSettings",
    "Float16",
    "Quantize",
    "QuantizeSettings",
    "RandomK",
    "RowCodec",
    "Subsample",
    "TopK",
    "register_codec",
]
