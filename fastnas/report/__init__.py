"""The report of a search: an HTML page, drawings of the cells, and a drawing for the terminal."""

from fastnas.report.cell_graph import draw_cell
from fastnas.report.page import write_report
from fastnas.report.terminal import print_genotype

__all__ = ["draw_cell", "print_genotype", "write_report"]
