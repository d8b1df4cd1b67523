"""Every command of ``lakerunner``, used as a person uses it, on real servers."""
