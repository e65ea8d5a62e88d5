// Package edeks does the work of `claviger edek census`, `claviger migrate verdict` and `claviger key version purge`.
// It opens images, or fetches them from NameNodes, and counts their EDEKs. From the counts it prints a census, or
// decides whether EDEKs still need a source or a version.
package edeks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/census"
	"claviger/durable"
	"claviger/filestamp"
	"claviger/fsimage"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/namenode"
	"claviger/terminal"
)

// Use and Short describe the command.
const (
	Use   = "census [IMAGE]"
	Short = "Count which EDEKs of an HDFS need which key version"
)

// Options are the flags of the command.
type Options struct {
	NameNodes []string
	Fetch     string
	Conf      string
	Paths     int
	List      string
	Workers   int
	Quiet     bool
	Out       terminal.Output
}

// Define gives the command its flags.
func (o *Options) Define(cmd *cobra.Command) {
	o.Out.Flag(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&o.NameNodes, "namenode", nil,
		"fetch the newest image of these NameNodes of one HDFS, as in https://HOST:9871,https://HOST2:9871")
	f.StringVar(&o.Fetch, "fetch", "", "write the fetched image into this new file, and its digest into FILE.md5; do "+
		"not count")
	f.StringVar(&o.Conf, "conf", "", "configuration folder of a KMS, whose keys are compared with those of the "+
		"image; for --namenode, its ssl-client.xml names the truststore, and claviger.client.kerberos.* the login "+
		"(default: the system's roots and the tickets of kinit)")
	f.IntVar(&o.Paths, "paths", 3, "how many of the oldest files of each version are named")
	f.StringVar(&o.List, "list", "", "print the path of each file that needs this key version, one a line")
	f.IntVar(&o.Workers, "workers", runtime.NumCPU(), "how many processors are used")
	f.BoolVar(&o.Quiet, "quiet", false, "show no progress")
}

// maxPaths bounds --paths: --list shows all.
const maxPaths = 1000

// check returns an error of the command line.
func (o *Options) check(args []string) error {
	var text string
	switch {
	case len(args)+min(1, len(o.NameNodes)) != 1:
		text = "give either an IMAGE or --namenode"
	case o.Fetch != "" && len(o.NameNodes) == 0:
		text = "--fetch needs --namenode"
	case o.Fetch != "" && o.List != "":
		text = "--fetch does not count, so --list has nothing to list"
	case o.List != "" && o.Out.JSON():
		text = "--list prints paths, one a line, and no JSON"
	case o.Paths < 0 || o.Paths > maxPaths:
		text = fmt.Sprintf("--paths: %d is not between 0 and %d; --list lists all files of a version", o.Paths,
			maxPaths)
	case o.Workers < 1 || o.Workers > 1024:
		text = fmt.Sprintf("--workers: %d is not between 1 and 1024", o.Workers)
	case o.Conf != "": // a wrong folder must not show after the count
		_, err := hadoopconf.LoadKMS(o.Conf, os.LookupEnv)
		return err
	default:
		return nil
	}
	return &terminal.UsageError{Err: errors.New(text)}
}

// Census does the work. Progress and remarks go to log.
func Census(ctx context.Context, o *Options, args []string, log io.Writer) error {
	if err := o.check(args); err != nil {
		return err
	}
	if len(o.NameNodes) == 0 {
		f, err := durable.OpenRegular(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		if err := o.count(ctx, f, log); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return nil
	}
	newest, err := o.newest(ctx)
	if err != nil {
		return err
	}
	if o.Fetch != "" {
		return o.fetchInto(ctx, newest, log)
	}
	return o.countFetched(ctx, newest, log)
}

// fetched is the output of --fetch.
type fetched struct {
	NameNode    string `json:"namenode"`
	Transaction uint64 `json:"txid"`
	Size        int64  `json:"bytes"`
	Digest      string `json:"md5"`
	File        string `json:"file"`
}

// newest finds the newest image of the NameNodes.
func (o *Options) newest(ctx context.Context) (*namenode.Image, error) {
	conf := hadoopconf.New("", os.LookupEnv)
	if o.Conf != "" {
		dir, err := filepath.Abs(o.Conf)
		if err != nil {
			return nil, err
		}
		if conf, err = hadoopconf.LoadKMS(dir, os.LookupEnv); err != nil {
			return nil, err
		}
	}
	client, err := kms.NameNodes(conf, o.NameNodes)
	if err != nil {
		return nil, err
	}
	return client.Newest(ctx)
}

// fetch fetches an image, and shows the progress. Image.Fetch calls write.
func (o *Options) fetch(ctx context.Context, m *namenode.Image, write func(func(io.Writer) error) error,
	log io.Writer) error {
	progress := terminal.NewProgress(log, "MB", o.Quiet)
	defer progress.End()
	return m.Fetch(ctx, write, func(done int64) {
		progress.Show(int(done>>20), int(m.Size>>20), "fetching "+m.URL)
	})
}

// fetchInto fetches an image into a new file, and writes its digest beside it, as a NameNode does.
func (o *Options) fetchInto(ctx context.Context, m *namenode.Image, log io.Writer) error {
	digest := o.Fetch + digestSuffix
	if _, err := os.Lstat(digest); err == nil {
		return fmt.Errorf("--fetch: %w", &durable.AlreadyError{Path: digest})
	}
	if err := o.fetch(ctx, m, func(content func(io.Writer) error) error {
		return durable.CreateFrom(o.Fetch, 0o600, content)
	}, log); err != nil {
		return fmt.Errorf("--fetch: %w", err)
	}
	line := fmt.Appendf(nil, "%s *%s\n", m.Digest, filepath.Base(o.Fetch))
	if err := durable.Create(digest, line, 0o600); err != nil {
		return fmt.Errorf("--fetch: %w", err)
	}
	return o.Out.Write(fetched{m.URL, m.Transaction, m.Size, m.Digest, o.Fetch}, func(w io.Writer) {
		fmt.Fprintf(w, "%s holds the image of transaction %d, from %s, and %s its digest. The image has paths, EDEKs "+
			"and the secrets of delegation tokens: remove it after use.\n", o.Fetch, m.Transaction, m.URL, digest)
	})
}

// countFetched fetches an image and counts it.
func (o *Options) countFetched(ctx context.Context, m *namenode.Image, log io.Writer) error {
	f, err := o.fetchUnnamed(ctx, m, log)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := o.count(ctx, f, log); err != nil {
		return fmt.Errorf("the image of %s: %w", m.URL, err)
	}
	return nil
}

// fetchUnnamed fetches an image into a file without a name, so that it is gone when this process ends: it holds
// secrets.
func (o *Options) fetchUnnamed(ctx context.Context, m *namenode.Image, log io.Writer) (*os.File, error) {
	f, err := os.CreateTemp("", "claviger-fsimage-")
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		err = o.fetch(ctx, m, func(content func(io.Writer) error) error {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if err := f.Truncate(0); err != nil {
				return err
			}
			return content(f)
		}, log)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("fetching into a file of %s (TMPDIR): %w", os.TempDir(), err)
	}
	return f, nil
}

// unchanged calls work, which reads a file. If the file was changed meanwhile, for example by a copy that was still
// running, the parts that were read may not belong together, so the result is an error.
func unchanged(f *os.File, work func() error) error {
	before, err := filestamp.OfOpen(f)
	if err == nil {
		err = work()
	}
	if err != nil {
		return err
	}
	after, err := filestamp.OfOpen(f)
	if err == nil && after != before {
		err = errors.New("the file was changed or renamed while it was read: copy it to a place where nothing " +
			"changes it, wait for the end of the copy, and run the command again")
	}
	return err
}

// count counts an image and prints the result.
func (o *Options) count(ctx context.Context, f *os.File, log io.Writer) error {
	var counted *census.Census
	if err := unchanged(f, func() (err error) {
		if counted, err = o.counted(ctx, f, log); err == nil && o.List != "" {
			err = counted.List(ctx, o.List, func(path string) error {
				return o.Out.Printf("%s\n", claviger.Printable(path))
			})
		}
		return err
	}); err != nil || o.List != "" {
		return err
	}
	report := counted.Report()
	out := result{report, o.compareKeys(ctx, report)}
	if err := o.Out.Write(out, func(w io.Writer) {
		text(w, report)
		keysText(w, &out.Keys)
	}); err != nil || report.Complete {
		return err
	}
	return claviger.Refuse("the census is not complete, so it does not show that any version may be retired: %s",
		strings.Join(report.Problems, "; "))
}

// counted counts an image.
func (o *Options) counted(ctx context.Context, f *os.File, log io.Writer) (*census.Census, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	image, err := fsimage.Open(f, info.Size())
	if err != nil {
		return nil, err
	}
	progress := terminal.NewProgress(log, "inodes", o.Quiet)
	defer progress.End()
	rate := newRate()
	return census.Count(ctx, image, census.Config{Workers: o.Workers, Paths: o.Paths,
		Progress: func(done, total uint64) {
			progress.Show(int(done), int(total), rate.text(done, total)) //nolint:gosec // fewer than 2^32
		}})
}
