"""The figures there are, by name."""

from __future__ import annotations

from scanner.errors import ScannerError
from scanner.figures.ablation import ablation
from scanner.figures.activations import activation_overlap, activation_spectrum
from scanner.figures.along_spectrum import pvalues_by_role, spectra_by_role
from scanner.figures.depth import depth, heads, outliers
from scanner.figures.finetuning import finetuning
from scanner.figures.lazy import lazy
from scanner.figures.pairs import overlap, pair_spectra
from scanner.figures.registry import Figure, figure, nearest
from scanner.figures.slicing import slicing
from scanner.figures.spectrum import spectrum
from scanner.figures.theory import theory
from scanner.figures.vector import vector

_ALL = (
    figure(
        spectrum,
        title="Spectrum of a matrix, beside the Marchenko-Pastur law and a random control",
        about="Histogram of the singular values. A random matrix stays between the edges ν_min and ν_max; what lies outside was "
        "put there by training.",
    ),
    figure(
        spectra_by_role,
        title="Mean spectra by role",
        about="Singular values by rank, averaged over the matrices of a role, in units of σ √max(m, n), beside what a random "
        "matrix of that aspect ratio has there (dotted). Above ν_max and below ν_min stands what training put there.",
    ),
    figure(
        pvalues_by_role,
        title="Randomness of the singular vectors along the spectrum, by role",
        about="p of the Kolmogorov-Smirnov test, averaged locally; left are the largest singular values, right the smallest. "
        "Random vectors have 0.5; the lower, the more was learned there. One block stands out over the average of all.",
    ),
    figure(
        vector,
        title="One singular vector against the Gaussian of random ones",
        about="The entries' distribution function and density beside the Gaussian, their Kolmogorov-Smirnov distance D in the "
        "distribution that random vectors have, and p along the whole spectrum beside the control.",
    ),
    figure(
        depth,
        title="Randomness of the singular vectors by depth and role",
        about="Mean p of all singular vectors of a matrix, by block. Random matrices have 0.5; the lower, the more was learned.",
    ),
    figure(
        heads,
        title="Randomness of the singular vectors by attention head",
        about="Mean p of the singular vectors of one head's slice, layer by head; the darker, the more a head has learned. Needs "
        "a scan with --heads.",
    ),
    figure(
        outliers,
        title="Singular values outside the Marchenko-Pastur bulk, layer by role",
        about="How many singular values lie below ν_min and above ν_max; the colour is their share. Square matrices have no "
        "left side.",
    ),
    figure(
        pair_spectra,
        title="Spectrum and randomness of a matrix before and after fine-tuning",
        about="Singular values by rank, their relative change, and the local mean of p. Without a role and layer, the matrix that "
        "changed most. Needs the pair compared.",
    ),
    figure(
        overlap,
        title="Overlap of the singular vectors before and after fine-tuning",
        about="|v · v′| of the vectors before (v′) and after (v) as a heat map; what stays on the diagonal kept its direction and "
        "its rank. Reads both matrices again.",
    ),
    figure(
        theory,
        title="Minimal model: the small outlier that learning a rank-1 teacher must leave",
        about="Smallest singular value, and overlaps of its vectors with the teacher's, against the strength of training: closed "
        "forms beside samples with error bars. Needs no store.",
    ),
    figure(
        lazy,
        title="Rich and lazy networks without some of their singular values",
        about="Accuracy against the share of removed singular values (from `rmtscan lazy-learning`). A rich network does without "
        "its small ones; a lazy one keeps what it knows in all of them.",
    ),
    figure(
        finetuning,
        title="Accuracy after fine-tuning without a decile of the singular values, removed before it or after it",
        about="What lies outside the grey band (three standard deviations of the untouched runs, over seeds) is more than chance "
        "(from `rmtscan finetune`). What is lost when removed afterwards, and not when removed before, training has repaired.",
    ),
    figure(
        activation_overlap,
        title="Overlap of singular vectors with the principal directions of the activations",
        about="O_k by singular value, coloured by region; the grey band is what random vectors have. Outliers above it carry what "
        "the model knows of its input (from `rmtscan activations`).",
    ),
    figure(
        activation_spectrum,
        title="Spectrum of the activations that enter the matrices",
        about="Eigenvalues of the covariance of what enters each matrix, by role and index (from `rmtscan activations`).",
    ),
    figure(
        ablation,
        title="What a model loses without a tenth of its singular values",
        about="Damage by decile and role, beside random sets of the same size, and the spectra (from `rmtscan ablate`).",
    ),
    figure(
        slicing,
        title="What a model loses when its norms leave out a tenth of the directions of their signal",
        about="Damage by decile of the activation covariance's eigenvalues, projected before and after the norms (from `rmtscan "
        "slicing`).",
    ),
)

FIGURES: dict[str, Figure] = {one.name: one for one in _ALL}


def find_figure(name: str) -> Figure:
    """The figure of that name.

    Raises:
        ScannerError: there is none; says which there are and the nearest.
    """
    if name not in FIGURES:
        raise ScannerError(f"there is no figure {name!r}: {nearest(name, FIGURES)}")
    return FIGURES[name]
