"""The figures there are, by name."""

from __future__ import annotations

from scanner.errors import ScannerError
from scanner.figures.along_spectrum import pvalues_by_role, spectra_by_role
from scanner.figures.registry import Figure, figure, nearest
from scanner.figures.spectrum import spectrum

_ALL = (
    figure(
        spectrum,
        title="Spectrum of a matrix, beside the Marchenko-Pastur law and a random control",
        about="Histogram of the singular values. A random matrix stays between the edges ν₋ and ν₊; what lies outside was put "
        "there by training.",
    ),
    figure(
        spectra_by_role,
        title="Mean spectra by role",
        about="Singular values by rank, averaged over the matrices of a role, in units of σ √max(m, n), beside what a random "
        "matrix of that aspect ratio has there (dotted). Above ν₊ and below ν₋ stands what training put there.",
    ),
    figure(
        pvalues_by_role,
        title="Randomness of the singular vectors along the spectrum, by role",
        about="p of the Kolmogorov-Smirnov test, averaged locally; left are the largest singular values, right the smallest. "
        "Random vectors have 0.5; the lower, the more was learned there. One block stands out over the average of all.",
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
