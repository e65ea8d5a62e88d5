package org.apache.hadoop.crypto.key.kms.server;

import java.io.File;
import java.io.FileWriter;
import java.io.IOException;
import java.io.Writer;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.security.UserGroupInformation;

/**
 * Replaces the MiniKMS of Hadoop's tests, with the same API. Hadoop's class runs a server in the same JVM. This class
 * starts the command in the system property kms.server.cmd (each word in its own line), followed by "--conf DIR
 * --http-port N --ready-file FILE [--tls]", and stops the process by SIGTERM.
 */
public class MiniKMS {
  private static final List<Process> LIVE = Collections.synchronizedList(new ArrayList<>());

  static {
    Runtime.getRuntime().addShutdownHook(new Thread(() -> LIVE.forEach(Process::destroyForcibly)));
  }

  /** Has the same methods as the Builder of Hadoop's MiniKMS. */
  public static class Builder {
    private File dir = new File("target/test-classes").getAbsoluteFile();
    private File keystore;
    private String password;
    private int port;

    public Builder setKmsConfDir(File d) {
      dir = d;
      return this;
    }

    public Builder setLog4jConfFile(String file) {
      return this;
    }

    public Builder setPort(int p) {
      port = p;
      return this;
    }

    public Builder setSslConf(File jks, String pw) {
      keystore = jks;
      password = pw;
      return this;
    }

    public MiniKMS build() {
      return new MiniKMS(dir, keystore, password, port);
    }
  }

  private final File dir;
  private final File keystore;
  private final String password;
  private final int port;
  private Process child;
  private URL url;

  private MiniKMS(File dir, File keystore, String password, int port) {
    this.dir = dir.getAbsoluteFile();
    this.keystore = keystore;
    this.password = password;
    this.port = port;
  }

  public void start() throws Exception {
    System.setProperty("kms.config.dir", dir.getPath());
    writeMissing();
    // Hadoop's server shares the JVM with the tests and makes this call. The tests rely on it.
    UserGroupInformation.setConfiguration(KMSConfiguration.getKMSConf());

    File ready = File.createTempFile("kms", ".ready");
    ready.delete();
    List<String> cmd = new ArrayList<>(Arrays.asList(System.getProperty("kms.server.cmd").split("\n")));
    Collections.addAll(cmd, "--conf", dir.getPath(), "--http-port", "" + port, "--ready-file", ready.getPath());
    if (keystore != null) {
      Map<String, String> ssl = new LinkedHashMap<>();
      ssl.put("ssl.server.keystore.location", keystore.getAbsolutePath());
      ssl.put("ssl.server.keystore.password", password);
      ssl.put("ssl.server.keystore.type", "jks");
      write("ssl-server.xml", ssl);
      cmd.add("--tls");
    }
    ProcessBuilder b = new ProcessBuilder(cmd);
    String krb5 = System.getProperty("java.security.krb5.conf");
    if (krb5 != null) {
      b.environment().put("KRB5_CONFIG", krb5);
    }
    File log = new File(System.getProperty("kms.server.log"));
    child = b.redirectErrorStream(true).redirectOutput(ProcessBuilder.Redirect.appendTo(log)).start();
    LIVE.add(child);
    url = new URL(await(ready, log));
  }

  private String await(File ready, File log) throws Exception {
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (true) {
      if (ready.exists()) {
        String text = new String(Files.readAllBytes(ready.toPath()), StandardCharsets.UTF_8);
        if (text.endsWith("\n")) {
          ready.delete();
          return text.trim();
        }
      }
      if (!child.isAlive()) {
        throw new IOException("the server ended with status " + child.exitValue() + " before it was ready; see " + log);
      }
      if (System.nanoTime() > end) {
        child.destroyForcibly();
        throw new IOException("the server was not ready within 60 s; see " + log);
      }
      Thread.sleep(10);
    }
  }

  /** Writes the configuration files that do not exist, like Hadoop's MiniKMS. */
  private void writeMissing() throws IOException {
    if (!new File(dir, "kms-acls.xml").exists()) {
      Map<String, String> acls = new LinkedHashMap<>();
      for (String op : ("CREATE DELETE ROLLOVER GET GET_KEYS GET_METADATA SET_KEY_MATERIAL GENERATE_EEK DECRYPT_EEK").split(" ")) {
        acls.put("hadoop.kms.acl." + op, "*");
      }
      for (String op : "MANAGEMENT GENERATE_EEK DECRYPT_EEK READ".split(" ")) {
        acls.put("default.key.acl." + op, "*");
      }
      write("kms-acls.xml", acls);
    }
    File core = new File(dir, "core-site.xml");
    if (!core.exists()) {
      try (Writer w = new FileWriter(core)) {
        new Configuration().writeXml(w);
      }
    }
    if (!new File(dir, "kms-site.xml").exists()) {
      Map<String, String> site = new LinkedHashMap<>();
      site.put("hadoop.kms.key.provider.uri", "jceks://file@" + new Path(dir.getPath(), "kms.keystore").toUri());
      site.put("hadoop.kms.authentication.type", "simple");
      write("kms-site.xml", site);
    }
  }

  private void write(String name, Map<String, String> properties) throws IOException {
    Configuration c = new Configuration(false);
    properties.forEach(c::set);
    try (Writer w = new FileWriter(new File(dir, name))) {
      c.writeXml(w);
    }
  }

  public URL getKMSUrl() {
    return url;
  }

  public void stop() {
    if (child == null) {
      return;
    }
    child.destroy();
    try {
      if (!child.waitFor(20, TimeUnit.SECONDS)) {
        child.destroyForcibly().waitFor();
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
    LIVE.remove(child);
  }
}
