"""Pipelines: trained artifacts joined into something that generates."""

from alight.pipelines.lightning_dit import LightningDiTOutput, LightningDiTPipeline

__all__ = ["LightningDiTOutput", "LightningDiTPipeline"]
