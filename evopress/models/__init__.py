"""Models: find and load one, find its sites, calibrate it block by block, stitch a profile into it.

Knows torch and transformers, and neither searches nor stores. Importing it imports torch, so the command line does so late.
"""

from evopress.models.calibrate import calibrate
from evopress.models.load import ModelRef, load, pick_dtype, resolve, skeleton, tokenizer, weights_digest
from evopress.models.sites import SiteMap, check_coverage, find_sites
from evopress.models.stitch import Stitcher
from evopress.models.weights import module_of, read, write

__all__ = [
    "ModelRef",
    "SiteMap",
    "Stitcher",
    "calibrate",
    "check_coverage",
    "find_sites",
    "load",
    "module_of",
    "pick_dtype",
    "read",
    "resolve",
    "skeleton",
    "tokenizer",
    "weights_digest",
    "write",
]
