package storehttp

import (
	"net"
	"net/http"
)

// Guard protects a loopback listener without authentication from web pages in
// a browser on the same machine: a request must name the listener by a loopback
// address, "localhost" or one of names (a page that rebinds its own DNS name to
// 127.0.0.1 cannot), and a request that changes something must not come from
// another origin.
func Guard(next http.Handler, names ...string) http.Handler {
	allowed := map[string]bool{"localhost": true}
	for _, n := range names {
		allowed[n] = true
	}
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
			host = host[1 : len(host)-1]
		}
		ip := net.ParseIP(host)
		if !allowed[host] && (ip == nil || !ip.IsLoopback()) {
			WriteError(w, &Error{Status: http.StatusMisdirectedRequest, Code: "wrong_host",
				Message: "this listener answers only to a loopback address or localhost, not to " + host,
				Hint:    "use http://127.0.0.1 with the port, or configure TLS and authentication"})
			return
		}
		next.ServeHTTP(w, r)
	})
}
