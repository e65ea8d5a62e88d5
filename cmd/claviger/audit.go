package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"claviger/audit"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/terminal"
)

func newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Verify the audit log", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newAuditVerify())
	return cmd
}

// auditVerifyFlags are the flags of `claviger audit verify`.
type auditVerifyFlags struct {
	key, conf string
	heads     []string
	noHead    bool
}

func newAuditVerify() *cobra.Command {
	var f auditVerifyFlags
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Find removed, changed and reordered records of a JSON audit log",
		Args:  cobra.MinimumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return verifyAudit(cmd, args, f, &out) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key-file", "", "file with the key of claviger.audit.json.key.file")
	flags.StringVar(&f.conf, "conf", "", "configuration folder of the node; its metastore has the head")
	out.Flag(cmd)
	flags.StringArrayVar(&f.heads, "head", nil, "file with a head")
	flags.BoolVar(&f.noHead, "no-head-file", false, "do not read FILE.head")
	return cmd
}

func verifyAudit(cmd *cobra.Command, paths []string, f auditVerifyFlags, out *terminal.Output) error {
	for _, path := range paths { // audit.json* in a shell includes heads
		if strings.HasSuffix(path, ".head") {
			f.heads = append(f.heads, path)
		}
	}
	if paths = slices.DeleteFunc(slices.Clone(paths), audit.IsBeside); len(paths) == 0 {
		return &exitError{exitUsage, errors.New("only heads are given: name a file of the log too")}
	}
	var cfg audit.VerifyConfig
	var err error
	if f.key != "" {
		if cfg.Key, err = kms.ReadAuditKey(f.key); err != nil {
			return fmt.Errorf("--key-file: %w", err)
		}
	}
	if cfg.Heads, err = auditHeads(cmd.Context(), f, paths); err != nil {
		return err
	}
	report, err := audit.Verify(paths, cfg)
	if err != nil {
		return err
	}
	err = out.Write(report, func(w io.Writer) { printReport(w, report, len(cfg.Heads)) })
	if err == nil && len(report.Findings) > 0 {
		err = &exitError{code: exitRefused}
	}
	return err
}

func printReport(w io.Writer, r *audit.Report, heads int) {
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(w, "FOUND: %s\n", f)
	}
	if r.More > 0 {
		fmt.Fprintf(w, "FOUND: and %d more\n", r.More)
	}
	fmt.Fprintf(w, "%d records of node %s in %d files, %d to %d: ", r.Records, r.Node, len(r.Files), r.First, r.Last)
	switch {
	case len(r.Findings) > 0:
		fmt.Fprintf(w, "%d findings\n", len(r.Findings)+r.More)
	case r.Lost > 0:
		fmt.Fprintf(w, "an unbroken chain, but %d events were not recorded\n", r.Lost)
	case heads == 0:
		fmt.Fprint(w, "an unbroken chain; there is no head, so records may be missing at the end\n")
	default:
		fmt.Fprint(w, "an unbroken chain\n")
	}
}

// auditHeads collects the heads against which the files in paths are verified.
func auditHeads(ctx context.Context, f auditVerifyFlags, paths []string) ([]audit.Head, error) {
	var from []audit.Heads
	for _, path := range f.heads {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("--head: %w", err)
		}
		from = append(from, audit.HeadFile(path))
	}
	for _, path := range paths {
		if !f.noHead {
			from = append(from, audit.HeadFileOf(path))
		}
	}
	if f.conf != "" {
		conf, err := hadoopconf.LoadKMS(f.conf, os.LookupEnv)
		if err != nil {
			return nil, err
		}
		stored, end, err := kms.AuditHead(ctx, conf)
		if err != nil {
			return nil, err
		}
		defer end()
		from = append(from, stored)
	}
	var heads []audit.Head
	for _, source := range from {
		h, ok, err := source.Load(ctx)
		if err != nil {
			return nil, fmt.Errorf("the head in %s: %w", source.Name(), err)
		}
		if ok && !slices.Contains(heads, h) {
			heads = append(heads, h)
		}
	}
	return heads, nil
}
