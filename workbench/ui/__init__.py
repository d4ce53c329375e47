"""What the pages share: routing, state, widgets, pictures. The only package that knows Streamlit."""
