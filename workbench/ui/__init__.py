"""Shared by the pages: routing, state, widgets, pictures. The only package that knows Streamlit."""
