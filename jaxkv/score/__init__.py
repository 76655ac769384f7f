"""Which tokens matter: (B, K, S) fp32, higher means keep."""
