"""The layer between the networks and the operators: how cells and nodes run on the fused operators.

`patterns` says what a candidate computes, `branches` (`branch`, `separable`) how the operators compute each kind of
candidate, `batch_norm` how they are normalised. `plan`, `forward`, `backward` and `evaluation` put that together for a
cell of a supernet (`cell`), `node` for a node of a derived network.
"""
