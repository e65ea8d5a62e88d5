package hadoop

import (
	"path/filepath"
	"strings"
)

// leaveBehind makes two files that hold EDEKs of the source: one that stays open, and one that remains in a snapshot
// only.
func (w *walk) leaveBehind(super, user *Client) {
	w.t.Helper()
	user.FsShell("-touchz", "/finance/deleted")
	user.Must("images", "open", "/finance/open")
	super.DFSAdmin("-allowSnapshot", "/finance")
	super.FsShell("-createSnapshot", "/finance", "s1")
	user.FsShell("-rm", "-skipTrash", "/finance/deleted")
}

// judged makes a new image and has our program make a verdict, which must end with an exit status.
func (w *walk) judged(super *Client, conf string, env []string, code int) string {
	w.t.Helper()
	super.DFSAdmin("-safemode", "enter")
	super.DFSAdmin("-saveNamespace")
	super.DFSAdmin("-safemode", "leave")
	return ClavigerExit(w.t, env, code, "migrate", "verdict", "--conf", conf, "--hdfs-conf",
		filepath.Join(w.cluster.dir, "conf"), "--namenode", "http://"+w.cluster.conf["dfs.namenode.http-address"])
}

// verdicts has our program judge the images of the cluster. Before the zones are re-encrypted, there is no verdict.
// After that, only a snapshot needs the source; the step of the verdict removes it. The file that is open needs no
// step: its EDEK is re-encrypted too.
func (w *walk) verdicts(super *Client, conf string, env []string, reencrypt func()) {
	t := w.t
	t.Helper()
	early := w.judged(super, conf, env, 3)
	for _, want := range []string{"There is no verdict", "does not show that HDFS asks this KMS for the EDEKs of",
		"hdfs crypto -reencryptZone -start -path /finance", "hdfs crypto -reencryptZone -start -path /research",
		"hdfs dfs -deleteSnapshot /finance s1", "1 open for writing"} {
		if !strings.Contains(early, want) {
			t.Errorf("a verdict before the re-encryption does not say %q:\n%s", want, early)
		}
	}
	reencrypt()
	needed := w.judged(super, conf, env, 3)
	_, steps, _ := strings.Cut(needed, "\nTo do:\n")
	command := "hdfs dfs -deleteSnapshot /finance s1"
	if !strings.Contains(needed, "is not retirable: EDEKs need it") || !strings.Contains(needed, "1 only in "+
		"snapshots") ||
		!strings.Contains(steps, "1. delete snapshot /finance/.snapshot/s1") ||
		!strings.Contains(steps, "\n     "+command+"\n  2. then make a new image") {
		t.Errorf("with a snapshot the verdict is\n%s", needed)
	}
	if refused := ClavigerExit(t, env, 3, "migrate", "finish", "--conf", conf, "--verdict", "--unused-for",
		"0s"); !strings.Contains(refused, "EDEKs need the source: delete snapshot /finance/.snapshot/s1") {
		t.Errorf("finish says\n%s", refused)
	}
	super.FsShell(strings.Fields(strings.TrimPrefix(command, "hdfs dfs "))...)
	if granted := w.judged(super, conf, env, 0); !strings.Contains(granted, "is retirable: no EDEK of the images "+
		"needs") {
		t.Errorf("without the snapshot the verdict is\n%s", granted)
	}
}
