// Package auth knows who may do what at the door of a node: password files, names of
// identities, and ordered rules of access.
//
//	pw, err := auth.LoadPasswords("passwd")
//	ok := pw.Verify("plc-7", password, nil)
//	rules, err := auth.LoadRules("acl")
//	ok = rules.Allows(auth.Subject{Identity: "user:plc-7", Client: "plc-7"}, auth.Publish, "factory/a/plc-7")
//
// Values are immutable once loaded and may be used concurrently; a reload makes new
// ones. What is empty allows nothing, what cannot be read gives an error and no value.
package auth

import "strings"

// Anonymous is the identity of a client that has shown nothing.
const Anonymous = "anonymous"

// UserID and CertID are the identities of who logged in with a password or with a
// verified client certificate. They never meet: "user:x" is not "cert:x".
func UserID(name string) string { return "user:" + name }
func CertID(name string) string { return "cert:" + name }

// IsCert reports whether an identity comes from a certificate.
func IsCert(identity string) bool { return strings.HasPrefix(identity, "cert:") }

// Name is the bare name of an identity; "" for Anonymous, which has none.
func Name(identity string) string {
	if kind, name, ok := strings.Cut(identity, ":"); ok && (kind == "user" || kind == "cert") {
		return name
	}
	return ""
}

// pure reports whether a name may stand for one level of a topic. A name with a
// wildcard or a slash would widen the pattern that it is put into (CVE-2017-7650),
// and an empty one would be a level of its own.
func pure(name string) bool { return name != "" && !strings.ContainsAny(name, "+#/\x00") }
