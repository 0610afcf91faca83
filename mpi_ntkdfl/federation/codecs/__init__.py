"""Codecs: how vectors and Jacobians are written into messages, so that clients send fewer bytes."""

from mpi_ntkdfl.federation.codecs import halves, quantize, sparse, subsample
from mpi_ntkdfl.federation.codecs.base import CODECS, Codec, CodecSettings, RowCodec, register_codec
from mpi_ntkdfl.federation.codecs.choice import CodecChoice

__all__ = [
    "CODECS",
    "Codec",
    "CodecChoice",
    "CodecSettings",
    "RowCodec",
    "halves",
    "quantize",
    "register_codec",
    "sparse",
    "subsample",
]
