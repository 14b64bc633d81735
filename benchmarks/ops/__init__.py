"""One file per operator, called as the operator is."""
