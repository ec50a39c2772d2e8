"""The charts of a run as matplotlib figures. Everything in here needs matplotlib; `plots` imports it when it draws."""
