package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"claviger/kms/kmstest"
)

// TestInterruptedIsNoFaultOfTheSource: a signal during a request to a source is reported as a signal, and not as a
// fault of the source.
func TestInterruptedIsNoFaultOfTheSource(t *testing.T) {
	requested, release := make(chan struct{}, 100), make(chan struct{})
	source := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		requested <- struct{}{}
		<-release
	}))
	defer source.Close()
	defer close(release)
	dir := t.TempDir()
	kmstest.WriteFile(t, filepath.Join(dir, "kms-site.xml"), kmstest.SiteXML(
		"hadoop.kms.key.provider.uri", "jceks://file@"+filepath.Join(dir, "kms.keystore"),
		"claviger.metastore.uri", "sqlite://"+filepath.Join(dir, "claviger.db"),
		"hadoop.kms.key.provider.reencryption.source.uri", "kms://http@"+strings.TrimPrefix(source.URL,
			"http://")+"/kms",
	))
	kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML())
	for _, verb := range []string{"run", "plan", "verify"} {
		ctx, interrupt := context.WithCancel(t.Context())
		go func() {
			<-requested
			interrupt()
		}()
		var out bytes.Buffer
		root := newRootCommand()
		root.SetArgs([]string{"migrate", verb, "--conf", dir})
		root.SetOut(&out)
		root.SetErr(&out)
		err := root.ExecuteContext(ctx)
		interrupt()
		if err == nil || !strings.Contains(err.Error(), "interrupted") ||
			strings.Contains(err.Error(), "the source") || strings.Contains(err.Error(), "migrate.") {
			t.Errorf("%s: %v", verb, err)
		}
		if strings.Contains(out.String(), "failure") {
			t.Errorf("%s reports a fault:\n%s", verb, &out)
		}
	}
}
