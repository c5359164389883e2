"""A model in production: versions, exams, the gate, promotion and the way back."""
