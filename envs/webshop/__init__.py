"""WebShop (Yao et al. 2022, arXiv:2207.01206): shopping by search and click, equal to the official one step by step."""
