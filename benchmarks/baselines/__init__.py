"""Networks of the shape that other code bases have: constructors, signatures, names and order of computation.

Written anew from a description of these shapes, in plain torch without fastnas: what `fastnas.compat` is tested with
and measured against.
"""
