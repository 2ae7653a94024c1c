"""Routes that the gateway answers itself, which no framework knows. A new one belongs here."""

OWN_ROUTES = [("GET", "/v1/usage"), ("POST", "/v1/usage"), ("GET", "/metrics"), ("POST", "/admin/models/x/load")]
