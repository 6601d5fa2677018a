"""The dashboard: what the admin plane knows and can do, as pages for a person.

Pages are whole without a script; the script only keeps what is live up to date. Nothing is loaded from elsewhere. What
a page changes, it changes by the same calls, with the same authorisation and into the same audit log as the API.
"""
