package kms

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestConsoleAccess: the page Access decides as the server does, and names the line that decides. Others' rights, and
// whom a rule names, are for administrators.
func TestConsoleAccess(t *testing.T) {
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true",
		"claviger.console.details": "10.9.8.7", "hadoop.security.authorization": "true",
		"hadoop.kms.http.administrators": "root"},
		"default.key.acl.DECRYPT_EEK", "alice", "default.key.acl.READ", "*", "default.key.acl.MANAGEMENT", "root",
		"key.acl.shared.DECRYPT_EEK", "bob")
	root, alice := s.as("root"), s.as("alice")
	s.get(root, "/access").wants(t, http.StatusOK, "<option selected>DECRYPT_EEK", "kms-acls.xml", "!Answer")
	s.get(root, "/access?user=bob&operation=DECRYPT_EEK&key=other").wants(t, http.StatusOK, "<b>No</b>",
		"default.key.acl.DECRYPT_EEK", "kms-acls.xml:2", "There is no such key")
	s.get(root, "/access?user=bob&operation=reencrypt_eek&key=other").wants(t, http.StatusOK, "<b>No</b>",
		"GENERATE_EEK")
	s.get(alice, "/access?operation=DECRYPT_EEK&key=other").wants(t, http.StatusOK, "<b>Yes</b>", "readonly",
		"default.key.acl.DECRYPT_EEK", "!kms-acls.xml:")
	s.get(alice, "/access?user=bob&operation=DECRYPT_EEK&key=other").wants(t, http.StatusForbidden,
		"You may ask about yourself", "!<b>No</b>")
	s.get(root, "/access?operation=FLY").wants(t, http.StatusBadRequest, "no operation of that name")
	s.get(root, "/access?operation=GET_KEYS&key=k").wants(t, http.StatusOK, "<b>Yes</b>", "uses no rule of a key")
}

// TestConsoleAccessOfTheKey: the rules are those of the key's ACL name, if the user may read it.
func TestConsoleAccessOfTheKey(t *testing.T) {
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true"},
		"key.acl.shared.DECRYPT_EEK", "bob", "key.acl.shared.ALL", "root", "default.key.acl.DECRYPT_EEK", "*")
	s.makeKey("root", `{"name":"k","attributes":{"key.acl.name":"shared"}}`)
	s.get(s.as("root"), "/access?user=bob&operation=DECRYPT_EEK&key=k").wants(t, http.StatusOK, "<b>Yes</b>",
		"(ACL name shared)", "key.acl.shared.DECRYPT_EEK")
	s.get(s.as("root"), "/access?user=carol&operation=DECRYPT_EEK&key=k").wants(t, http.StatusOK, "<b>No</b>")
}

// TestConsoleAudit: the page Audit shows the last events with filters, to administrators those of all users, and the
// state of the chain.
func TestConsoleAudit(t *testing.T) {
	dir := t.TempDir()
	s := startConsole(t, map[string]string{"hadoop.kms.key.authorization.enable": "true",
		"claviger.audit.json.file": filepath.Join(dir, "audit.json"), "claviger.audit.node": "node1",
		"claviger.console.details": "10.9.8.7", "hadoop.security.authorization": "true",
		"hadoop.kms.http.administrators": "root"},
		"default.key.acl.READ", "root,alice", "default.key.acl.MANAGEMENT", "root")
	s.makeKey("root", `{"name":"<script>alert(1)</script>"}`)
	s.makeKey("root", `{"name":"alpha"}`)
	s.rest(http.MethodPost, "/v1/key/alpha", "alice", "{}", http.StatusForbidden)
	root, alice := s.as("root"), s.as("alice")
	for range 3 {
		s.get(alice, "/keys?key=alpha")
	}
	s.get(root, "/audit").wants(t, http.StatusOK, "CREATE_KEY", "&lt;script&gt;", "!<script>alert", "UNAUTHORIZED",
		"node1", "number ", "Lost since the start", "3 times since", "MANAGEMENT (right on a key)")
	s.get(alice, "/audit").wants(t, http.StatusOK, "UNAUTHORIZED", "your own", "!CREATE_KEY</td>", "!node1")
	s.get(root, "/audit?outcome=OK&operation=CREATE_KEY&key=alp&user=root").wants(t, http.StatusOK, "alpha@0",
		"1 to 1 of 1", "!&lt;script", "!UNAUTHORIZED</b>")
	list := s.get(root, "/audit?operation=CREATE_KEY&sort=key").text
	if a, b := strings.Index(list, "&lt;script"), strings.Index(list, "alpha@0"); a < 0 || b < a {
		t.Errorf("not sorted by key: %s", list)
	}
}
