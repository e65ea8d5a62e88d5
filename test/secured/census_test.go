package secured

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"claviger/test/hadoop"
)

// census fetches the image of the NameNode over https with a login by Kerberos, and counts it. A NameNode's principal
// may fetch it; alice may not.
func (s *site) census() {
	t := s.t
	t.Helper()
	conf := func(principal, keytab string) string {
		dir := t.TempDir()
		hadoop.Conf{"claviger.client.kerberos.principal": principal + "@" + realm,
			"claviger.client.kerberos.keytab": keytab}.Write(t, filepath.Join(dir, "kms-site.xml"))
		s.trust.Write(t, filepath.Join(dir, "ssl-client.xml"))
		return dir
	}
	env := s.kdc.Env()
	out := hadoop.Claviger(t, env, "edek", "census", "--namenode", s.nameNode, "--conf",
		conf("nn/localhost", s.servers))
	if !strings.Contains(out, "\n"+keyName+"@") || !strings.Contains(out, "\n"+zone+" ") {
		t.Errorf("the census has neither the key nor the zone:\n%s", out)
	}
	cmd := exec.CommandContext(t.Context(), hadoop.Binary(t), "edek", "census", "--namenode", s.nameNode, "--conf",
		conf(alice, s.users))
	cmd.Env = append(os.Environ(), env...)
	refused, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(refused), "dfs.cluster.administrators") {
		t.Errorf("alice fetches the image: %v\n%s", err, refused)
	}
}
