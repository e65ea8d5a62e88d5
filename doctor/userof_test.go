package doctor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/doctor"
	"claviger/secret"
)

// TestSecretsOfOtherUser: when root runs the doctor, the rights to the files of a service are judged for the user who
// owns them, and the output says so.
func TestSecretsOfOtherUser(t *testing.T) {
	other, err := secret.UserNamed("nobody")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const nobody = 65534
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	files := []secret.File{{Path: path}, {Path: path + ".none"}}
	o := &doctor.Options{}
	if list := o.Secrets(files); len(list) != 1 || list[0].Status != doctor.OK ||
		!strings.Contains(list[0].Measured, "users other than root may") {
		t.Errorf("files of root: %+v", list)
	}
	if err := os.Chown(path, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	list := o.Secrets(files)
	if len(list) < 2 || list[0].Status != doctor.Warning || !strings.Contains(list[0].Measured,
		path+" belongs to user nobody; rights are judged for nobody") ||
		!strings.Contains(list[0].Cure, "sudo -u nobody") {
		t.Errorf("files of %s: %+v", other.Name, list)
	}
	for _, f := range list {
		if strings.Contains(f.Measured, "users other than root may") {
			t.Errorf("judged for root: %+v", f)
		}
	}
	o.User = "root"
	if list := o.Secrets(files); len(list) != 1 {
		t.Errorf("with --user: %+v", list)
	}
}
