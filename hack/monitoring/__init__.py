"""Recording rules, alerts and dashboards, written as Python and committed as what Prometheus and Grafana read."""
