from egnas_search import cma_runs  # noqa: F401  (a fixture of this folder)
