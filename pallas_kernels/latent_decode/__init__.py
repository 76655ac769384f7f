"""latent_decode: a few queries a row against its pages of latents."""

from pallas_kernels.latent_decode.op import latent_decode

__all__ = ["latent_decode"]
