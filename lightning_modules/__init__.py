"""The stages by their names in recipes (``stage.class``). Importing this imports no torch."""

STAGES = {
    "Bidirectional": "lightning_modules.bidirectional",
    "TeacherForcing": "lightning_modules.teacher_forcing",
    "DiffusionForcing": "lightning_modules.diffusion_forcing",
    "SelfForcingODE": "lightning_modules.ode_regression",
    "ARDiffusion": "lightning_modules.ar_diffusion",
    "CausalODE": "lightning_modules.ode_regression",
    "CausalDMD": "lightning_modules.causal_dmd",
    "CausalCD": "lightning_modules.causal_cd",
    "AsymmetricDMD": "lightning_modules.asymmetric_dmd",
    "WorldProbe": "experiments.worlds.digits.probe",
}
"""Class name -> the module that holds it."""

ALONE = ("WorldProbe",)
"""Stages that train on one device, whatever ``launch`` says."""
