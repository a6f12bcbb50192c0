"""Methods × densities × seeds on models and datasets, each cell a process and a RunResult of its own."""
