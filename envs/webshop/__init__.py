"""WebShop (Yao et al. 2022, arXiv:2207.01206): shopping by search and click, step for step as the official one."""
