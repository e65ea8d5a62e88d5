package secured

import (
	"net/url"
	"path/filepath"
	"strings"

	"claviger/test/hadoop"
)

// doctor asks the running NameNode, over https with a login by Kerberos, which KMS it uses and how long it waits for
// EDEKs.
func (s *site) doctor() {
	t := s.t
	t.Helper()
	kms, err := url.Parse(s.kms.URL)
	if err != nil {
		t.Fatal(err)
	}
	conf := t.TempDir()
	hadoop.Conf{"hadoop.kms.http.host": kms.Hostname(), "hadoop.kms.http.port": kms.Port(),
		"hadoop.kms.key.provider.uri": "jceks://file@" + filepath.Join(conf, "not-opened.jceks"),
	}.With(s.kerberos()).Write(t, filepath.Join(conf, "kms-site.xml"))
	s.trust.Write(t, filepath.Join(conf, "ssl-client.xml"))
	out := hadoop.Claviger(t, s.kdc.Env(), "doctor", "--conf", conf, "--hdfs-conf", s.cluster.ConfDir(), "--namenode",
		s.nameNode, "--only", "D-hdfs-namenode,D-hdfs-running,D-hdfs-edeks")
	for _, want := range []string{s.nameNode + " is active, Hadoop 3.", "localhost's clock agrees",
		s.nameNode + " runs with hadoop.security.key.provider.path " + s.kms.ProviderURI(),
		s.nameNode + ": the NameNode keeps at most 500 EDEKs for a key", s.nameNode + ": EDEKs for new files: ",
		"no failure, no warning"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if strings.Contains(out, "EDEKs for new files: 0,") {
		t.Errorf("the NameNode counts no EDEK:\n%s", out)
	}
	t.Log(out)
}
