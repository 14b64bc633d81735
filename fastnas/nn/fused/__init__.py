"""The wing between the networks and the operators: how cells and nodes run on what is fused.

`plan` and `patterns` say what there is to compute, `forward`, `backward` and `evaluation` compute a cell of a supernet,
`node` a node of a derived network, `branches` what both know of each kind of candidate.
"""
