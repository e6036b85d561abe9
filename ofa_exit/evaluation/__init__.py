"""Quality metrics, efficiency reports and figures."""
