package demo

import (
	"context"
	"crypto/md5" //nolint:gosec // Hadoop's digest of images
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"claviger/durable"
	"claviger/internal/imagetest"
)

// The demo's HDFS exists as fsimages only. They have the zones, and the files with their EDEKs' versions.
const (
	snapshotName         = "s1"
	snapshotID           = 1
	firstINode           = imagetest.Root + 1
	imageWithoutSnapshot = "fsimage_without_snapshot"
)

// times are when a zone's re-encryption was submitted and completed.
type times struct{ submitted, completed time.Time }

// stepVerdict asks for two verdicts: with an image in which a snapshot holds a file whose EDEK needs the source, and
// with an image without the snapshot.
func (r *run) stepVerdict(ctx context.Context) error {
	hdfs, err := r.conf("hdfs", map[string]properties{"hdfs-site.xml": {}})
	if err != nil {
		return err
	}
	r.printf("this demo has no HDFS: it writes the fsimage that a NameNode would write. Snapshot %s of /%s holds a "+
		"file that was deleted before the re-encryption, so the source is needed:", snapshotName, zones[0].name)
	verdict := func(image string, exit int) error {
		_, err := r.cli(ctx, exit, "migrate", "verdict", "--conf", filepath.Join(r.Dir, "hsm"), "--hdfs-conf", hdfs,
			"--image", image)
		return err
	}
	image := filepath.Join(hdfs, "fsimage_with_snapshot")
	if err := r.writeImage(image); err != nil {
		return err
	}
	if err := verdict(image, 3); err != nil {
		return err
	}
	r.printf("")
	r.printf("the administrator deletes the snapshot, and the NameNode saves its namespace again:")
	r.deleted.dek.Wipe()
	r.deleted = file{}
	image = filepath.Join(hdfs, imageWithoutSnapshot)
	if err := r.writeImage(image); err != nil {
		return err
	}
	return verdict(image, 0)
}

// stepEvidence writes the evidence file, verifies it, and finds a byte that was changed.
func (r *run) stepEvidence(ctx context.Context) error {
	hdfs := filepath.Join(r.Dir, "hdfs")
	key, report := filepath.Join(r.Dir, "report.key"), filepath.Join(r.Dir, "report.zip")
	if _, err := r.cli(ctx, 0, "migrate", "report", "keygen", key); err != nil {
		return err
	}
	if _, err := r.cli(ctx, 0, "migrate", "report", "--conf", filepath.Join(r.Dir, "hsm"), "--hdfs-conf", hdfs,
		"--image", filepath.Join(hdfs, imageWithoutSnapshot), "--out", report, "--key", key); err != nil {
		return err
	}
	verify := func(exit int) error {
		_, err := r.cli(ctx, exit, "migrate", "report", "verify", report, "--public-key", key+".pub")
		return err
	}
	r.printf("")
	r.printf("the auditor has the file, and got the public key by another way:")
	if err := verify(0); err != nil {
		return err
	}
	data, err := os.ReadFile(report)
	if err != nil {
		return err
	}
	data[len(data)/2] ^= 1
	if err := durable.Replace(report, data, 0o600); err != nil {
		return err
	}
	r.printf("")
	r.printf("somebody changes one bit of the file:")
	return verify(3)
}

// writeImage writes the namespace of the demo as an fsimage, and the file with its digest, as a NameNode does.
func (r *run) writeImage(path string) error {
	r.transaction++
	tree := &imagetest.Tree{Nodes: []imagetest.Node{{ID: imagetest.Root, Folder: true}}, Transaction: r.transaction}
	next := uint64(firstINode)
	add := func(n imagetest.Node) uint64 {
		n.ID = next
		next++
		tree.Nodes = append(tree.Nodes, n)
		return n.ID
	}
	for _, z := range zones {
		when := r.reencrypted[z.name]
		var children []uint64
		version := ""
		for i, f := range r.files {
			if f.zone == z.name {
				version = f.edek.Version
				children = append(children, add(imagetest.Node{Name: fmt.Sprintf("file-%d", i), EDEK: version}))
			}
		}
		zone := add(imagetest.Node{Name: z.name, Folder: true, Zone: z.name, Children: children,
			Reencrypted: imagetest.Reencrypted{Version: version, Files: uint64(len(children)),
				Submitted: uint64(when.submitted.UnixMilli()),   //nolint:gosec // after 1970
				Completed: uint64(when.completed.UnixMilli())}}) //nolint:gosec // after 1970
		tree.Nodes[0].Children = append(tree.Nodes[0].Children, zone)
		if r.deleted.zone == z.name {
			gone := add(imagetest.Node{Name: "deleted", EDEK: r.deleted.edek.Version})
			tree.Snapshots = []imagetest.Snapshot{{ID: snapshotID, Root: zone, Name: snapshotName}}
			tree.AddDiffs(zone, false, imagetest.Diff{Snapshot: snapshotID, Deleted: []uint64{gone}})
		}
	}
	sum := md5.New() //nolint:gosec // Hadoop's digest of images
	if err := durable.CreateFrom(path, 0o600, func(w io.Writer) error {
		sum.Reset()
		_, err := tree.Write(io.MultiWriter(w, sum))
		return err
	}); err != nil {
		return err
	}
	return durable.Create(path+".md5", fmt.Appendf(nil, "%x *%s\n", sum.Sum(nil), filepath.Base(path)), 0o600)
}
