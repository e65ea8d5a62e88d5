package edeks

import (
	"context"
	"crypto/md5" //nolint:gosec // Hadoop's digest of images
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger/durable"
	"claviger/kms"
	"claviger/migrate"
	"claviger/migrate/verdict"
	"claviger/terminal"
)

// VerdictUse and VerdictShort describe the command claviger migrate verdict.
const (
	VerdictUse   = "verdict --conf DIR [--image FILE] [--namenode URL]"
	VerdictShort = "Count in fsimages whether EDEKs still need the source"
)

// VerdictOptions are the flags that choose images.
type VerdictOptions struct {
	Images    []string
	NameNodes []string // each item has the NameNodes of one namespace, by ','
	Paths     int
	Workers   int
	Quiet     bool
	// AcceptUnchecked and AcceptUnencrypted are what the operator accepts: images without a digest, and files without
	// an EDEK in zones, each item a zone and the number of its files, as in /zone=3.
	AcceptUnchecked   bool
	AcceptUnencrypted []string
	AcceptRollback    bool // see verdict.Input, also for AcceptGone
	AcceptGone        []uint
}

// Define gives a command the flags.
func (o *VerdictOptions) Define(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&o.Images, "image", nil, "the fsimage of a namespace; may be given several times")
	f.StringArrayVar(&o.NameNodes, "namenode", nil,
		"fetch the newest image of these NameNodes of one namespace, separated by commas, as in "+
			"https://HOST:9871; may be given several times")
	f.IntVar(&o.Paths, "paths", 3, "how many of the oldest files of each version are named")
	f.IntVar(&o.Workers, "workers", runtime.NumCPU(), "how many processors are used")
	f.BoolVar(&o.Quiet, "quiet", false, "show no progress")
	f.BoolVar(&o.AcceptUnchecked, "accept-unchecked", false, "accept images without the file IMAGE.md5 that the "+
		"NameNode writes; the verdict records it")
	f.StringArrayVar(&o.AcceptUnencrypted, "accept-unencrypted", nil, "accept at most N files without an EDEK in a "+
		"zone, as in `/zone=N`; may be given several times; the verdict records it")
	f.BoolVar(&o.AcceptRollback, "accept-rollback", false, "accept an image with an older transaction than one that "+
		"was counted before, because HDFS was rolled back; the verdict records it")
	f.UintSliceVar(&o.AcceptGone, "accept-gone", nil, "id of a namespace that is not a part of this HDFS, although an "+
		"image of it was counted before; may be given several times; the verdict records it")
}

// accepted reads the flag --accept-unencrypted.
func (o *VerdictOptions) accepted() (map[string]uint64, error) {
	zones := map[string]uint64{}
	for _, text := range o.AcceptUnencrypted {
		i := max(0, strings.LastIndexByte(text, '='))
		n, err := strconv.ParseUint(strings.TrimPrefix(text[i:], "="), 10, 64)
		if i == 0 || err != nil {
			return nil, &terminal.UsageError{Err: fmt.Errorf("--accept-unencrypted: %q is not a zone and a number of "+
				"files, as in /zone=3", text)}
		}
		zones[text[:i]] = n
	}
	return zones, nil
}

// Verdict counts the images, makes a verdict, and records it in the journal. conf is the configuration folder of the
// KMS, and hdfs that of HDFS; "" is conf. Progress goes to log.
func (o *VerdictOptions) Verdict(ctx context.Context, conf, hdfs string, engine *migrate.Engine, log io.Writer) (
	*migrate.Verdict, error) {
	v, _, err := o.VerdictAndImages(ctx, conf, hdfs, engine, log)
	return v, err
}

// VerdictAndImages is Verdict, and also returns the censuses of the images.
func (o *VerdictOptions) VerdictAndImages(ctx context.Context, conf, hdfs string, engine *migrate.Engine,
	log io.Writer) (*migrate.Verdict, []verdict.Image, error) {
	in, err := o.input(ctx, conf, hdfs, engine, log)
	if err != nil {
		return nil, nil, err
	}
	v := verdict.Judge(in)
	v.User = kms.OSUser()
	return v, in.Images, engine.RecordVerdict(ctx, v)
}

// options are those of a census.
func (o *VerdictOptions) options(conf string) *Options {
	return &Options{Conf: conf, Paths: o.Paths, Workers: o.Workers, Quiet: o.Quiet}
}

// check returns an error of the command line.
func (o *VerdictOptions) check() error {
	if len(o.Images)+len(o.NameNodes) == 0 {
		return &terminal.UsageError{Err: errors.New("give an image of each namespace by --image or --namenode")}
	}
	for _, id := range o.AcceptGone {
		if id > math.MaxUint32 {
			return &terminal.UsageError{Err: fmt.Errorf("--accept-gone: %d is no id of a namespace", id)}
		}
	}
	return o.options("").check([]string{"FILE"})
}

// input counts all images, and adds the facts about what they name.
func (o *VerdictOptions) input(ctx context.Context, conf, hdfs string, engine *migrate.Engine, log io.Writer) (
	*verdict.Input, error) {
	in, err := o.count(ctx, conf, hdfs, log)
	if err != nil {
		return nil, err
	}
	keys, versions := verdict.Names(in.Images)
	in.Facts, err = engine.EDEKFacts(ctx, keys, versions)
	return in, err
}

// count counts all images.
func (o *VerdictOptions) count(ctx context.Context, conf, hdfs string, log io.Writer) (*verdict.Input, error) {
	accepted, err := o.accepted()
	if err = errors.Join(o.check(), err); err != nil {
		return nil, err
	}
	one := o.options(conf)
	if hdfs == "" {
		hdfs = conf
	}
	site, err := readSite(hdfs)
	if err != nil {
		return nil, err
	}
	in := &verdict.Input{Nameservices: site.names, Unknown: site.unknown, Queue: site.queue,
		AcceptUnchecked: o.AcceptUnchecked, AcceptUnencrypted: accepted, AcceptRollback: o.AcceptRollback}
	for _, id := range o.AcceptGone {
		in.AcceptGone = append(in.AcceptGone, uint32(id)) //nolint:gosec // check has refused a greater number
	}
	for _, file := range o.Images {
		image, err := one.readImage(ctx, file, log)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		in.Images = append(in.Images, *image)
	}
	for _, urls := range o.NameNodes {
		one.NameNodes = strings.Split(urls, ",")
		image, err := one.fetchImage(ctx, log)
		if err != nil {
			return nil, err
		}
		image.Nameservice = site.serviceOf(image.Name)
		in.Images = append(in.Images, *image)
	}
	return in, nil
}

// readImage counts the image in a file.
func (o *Options) readImage(ctx context.Context, file string, log io.Writer) (*verdict.Image, error) {
	f, err := durable.OpenRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stored, err := storedDigest(file + digestSuffix)
	if err != nil {
		return nil, err
	}
	var image *verdict.Image
	if err := unchanged(f, func() (err error) {
		image, err = o.image(ctx, f, stored, log)
		return err
	}); err != nil {
		return nil, err
	}
	image.Unchecked = stored == ""
	if image.Name, err = filepath.Abs(file); err != nil {
		return nil, err
	}
	image.Cluster, image.Namespace, err = readVersion(filepath.Join(filepath.Dir(file), "VERSION"))
	return image, err
}

// fetchImage fetches the newest image of a namespace and counts it.
func (o *Options) fetchImage(ctx context.Context, log io.Writer) (*verdict.Image, error) {
	newest, err := o.newest(ctx)
	if err != nil {
		return nil, err
	}
	f, err := o.fetchUnnamed(ctx, newest, log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	image, err := o.image(ctx, f, "", log) // its MD5 digest was checked when it was fetched
	if err != nil {
		return nil, fmt.Errorf("the image of %s: %w", newest.URL, err)
	}
	image.Name = newest.URL
	return image, nil
}

// image counts an open image, and makes its digest. stored is the MD5 digest that the image must have; "" is any.
func (o *Options) image(ctx context.Context, f *os.File, stored string, log io.Writer) (*verdict.Image, error) {
	counted, err := o.counted(ctx, f, log)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	image := &verdict.Image{Bytes: info.Size(), Written: info.ModTime(), Report: counted.Report()}
	progress := terminal.NewProgress(log, "MB", o.Quiet)
	defer progress.End()
	sum, buffer := sha256.New(), make([]byte, 1<<20)
	md5sum, both := md5.New(), io.Writer(sum) //nolint:gosec // Hadoop's digest of images
	if stored != "" {
		both = io.MultiWriter(sum, md5sum)
	}
	for at := int64(0); at < image.Bytes; {
		n, err := f.ReadAt(buffer[:min(int64(len(buffer)), image.Bytes-at)], at)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
			return nil, fmt.Errorf("reading the file for its digest: %w", err)
		}
		_, _ = both.Write(buffer[:n]) // hashes do not fail
		at += int64(n)
		progress.Show(int(at>>20), int(image.Bytes>>20), "digest of the image")
	}
	if got := hex.EncodeToString(md5sum.Sum(nil)); stored != "" && got != stored {
		return nil, fmt.Errorf("its MD5 digest is %s, and the file .md5 beside it says %s: the image was damaged or "+
			"changed; copy both files again from the NameNode", got, stored)
	}
	image.Digest = hex.EncodeToString(sum.Sum(nil))
	return image, nil
}

// maxBeside is the greatest size of the files beside an image, in bytes.
const maxBeside = 64 << 10

// digestSuffix ends the name of the file with an image's digest.
const digestSuffix = ".md5"

// storedDigest reads the MD5 digest that a NameNode stores beside an image: the digest, a blank, and "*" with the name
// of the image. The result is "" if there is no such file.
func storedDigest(file string) (string, error) {
	text, err := durable.ReadRegular(file, maxBeside)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	digest, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if b, err := hex.DecodeString(digest); err != nil || len(b) != md5.Size {
		return "", fmt.Errorf("%s has no MD5 digest: copy it again from the NameNode, or remove it", file)
	}
	return strings.ToLower(digest), nil
}

// readVersion reads the ids in the file VERSION, which is beside the image in a NameNode's folder. Both are "" if there
// is no such file.
func readVersion(file string) (cluster, namespace string, err error) {
	text, err := durable.ReadRegular(file, maxBeside)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch name {
		case "clusterID":
			cluster = value
		case "namespaceID":
			namespace = value
		}
	}
	return cluster, namespace, err
}

// defaultQueue is how long a NameNode keeps unused EDEKs by default.
const defaultQueue = 12 * time.Hour
