"""Looking into a run or a compiled library: what is counted, where time goes, what the compilers made."""
